"""The web page: what it holds (`session`), what goes in and comes out, how it looks (`page`)."""
