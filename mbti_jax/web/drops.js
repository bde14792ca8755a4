// A folder that is dropped on the files: Gradio takes it for a file of no kind, and once files are there it takes
// nothing at all. What is dropped there goes through the button that chooses a folder, which is checked likewise.
() => {
  const ENDINGS = __ENDINGS__, MOST = __MOST__, area = (event) => event.target instanceof Element && event.target.closest("#files");
  const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const isImage = (name) => !name.startsWith(".") && ENDINGS.some((ending) => name.toLowerCase().endsWith(ending));
  const promised = (call) => new Promise(call);

  // The images below entries, one more than are taken at most: the rest of a large tree is not looked at.
  async function images(entries, found = []) {
    for (const entry of entries) {
      if (found.length > MOST) break;
      if (entry.isFile && isImage(entry.name)) found.push(await promised((yes, no) => entry.file(yes, no)));
      if (!entry.isDirectory) continue;
      const reader = entry.createReader(), inside = [];
      // Chromium gives a hundred at a time.
      for (let more; (more = await promised((yes, no) => reader.readEntries(yes, no))).length;) inside.push(...more);
      await images(inside.sort((a, b) => (a.name < b.name ? -1 : 1)), found);
    }
    return found;
  }

  async function take(entries) {
    let files = [];
    try {
      files = await images(entries);
    } catch (error) {
      files = [new File([], "folder that cannot be read")];
    }
    // For what cannot be used an empty file stands, about which the server says what it says of a chosen folder.
    if (!files.length) files = [new File([], "nothing")];
    if (files.length > MOST) files = files.map((file) => new File([], file.name));
    const input = document.querySelector("input[webkitdirectory]"), given = new DataTransfer();
    for (const file of files) given.items.add(file);
    input.files = given.files;
    input.dispatchEvent(new Event("change", {bubbles: true}));
  }

  window.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    // Beside the places that take files the browser would leave the page and open them.
    event.preventDefault();
    if (!area(event) && !event.target.closest?.(".upload-container")) event.dataTransfer.dropEffect = "none";
  }, true);
  window.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    if (!area(event)) return;
    // Entries are there only as long as the event is handled.
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
    const takesFiles = area(event).querySelector("[aria-dropeffect]")?.checkVisibility();
    if (!entries.length || (takesFiles && !entries.some((entry) => entry.isDirectory))) return;
    event.stopPropagation();
    // So that the area is drawn as one over which nothing is held.
    event.target.dispatchEvent(new DragEvent("dragleave", {bubbles: true, cancelable: true}));
    take(entries);
  }, true);
}
