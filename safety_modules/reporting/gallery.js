document.addEventListener("click", event => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.type) {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", shown);
    document.getElementById("type-" + button.dataset.type).hidden = !shown;
  } else if (button.classList.contains("all")) {
    for (const view of button.closest("section").querySelectorAll("button.view")) view.setAttribute("aria-pressed", button.dataset.show);
  } else if (button.classList.contains("view")) {
    button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
  }
});
