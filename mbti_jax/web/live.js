() => {
  const mark = () => {
    for (const id of ["loaded", "outcome"]) {
      const one = document.getElementById(id);
      if (one && !one.hasAttribute("aria-live")) { one.setAttribute("role", "status"); one.setAttribute("aria-live", "polite"); }
    }
  };
  mark();
  new MutationObserver(mark).observe(document.body, {childList: true, subtree: true});
}
