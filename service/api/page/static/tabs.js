// Tabs as the ARIA practices have them: arrow keys go round, the address keeps which one is open.

/** Wire up a tab list. Gives { show(name, isShown) }. */
export function tabs(list) {
  const all = [...list.querySelectorAll("[role=tab]")];
  const panelOf = (tab) => document.getElementById(tab.getAttribute("aria-controls"));
  const shown = () => all.filter((tab) => !tab.hidden);

  function open(tab, { focus = false } = {}) {
    for (const each of all) {
      const isOpen = each === tab;
      each.setAttribute("aria-selected", String(isOpen));
      each.tabIndex = isOpen ? 0 : -1;
      panelOf(each).hidden = !isOpen;
    }
    if (focus) tab.focus();
    history.replaceState(null, "", `#${panelOf(tab).id}`);
  }

  list.addEventListener("click", (event) => {
    const tab = event.target.closest("[role=tab]");
    if (tab) open(tab);
  });
  list.addEventListener("keydown", (event) => {
    const here = shown();
    const at = here.indexOf(document.activeElement);
    const next = { ArrowRight: at + 1, ArrowLeft: at - 1 + here.length, Home: 0, End: here.length - 1 }[event.key];
    if (next === undefined || at < 0) return;
    event.preventDefault();
    open(here[next % here.length], { focus: true });
  });

  const wanted = location.hash.slice(1); // opened as soon as the model turns out to have it
  return {
    show(name, isShown) {
      const tab = all.find((each) => panelOf(each).id === name);
      const wasShown = !tab.hidden;
      tab.hidden = !isShown;
      if (isShown && !wasShown && name === wanted) open(tab);
      if (!isShown && tab.getAttribute("aria-selected") === "true" && shown().length) open(shown()[0]);
    },
  };
}
