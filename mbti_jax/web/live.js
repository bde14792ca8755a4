() => {
  const mark = () => {
    for (const id of ["loaded", "outcome"]) {
      const one = document.getElementById(id);
      if (one && !one.hasAttribute("aria-live")) { one.setAttribute("role", "status"); one.setAttribute("aria-live", "polite"); }
    }
    // Its text says more than its label.
    for (const one of document.querySelectorAll(".upload-container[aria-label]")) one.removeAttribute("aria-label");
  };
  mark();
  new MutationObserver(mark).observe(document.body, {childList: true, subtree: true});
}
