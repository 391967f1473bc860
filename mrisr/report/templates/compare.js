(() => {
  const root = document.getElementById("compare");
  if (!root) return;
  let timer = 0;
  const press = (buttons, chosen) => buttons.forEach((b) => b.setAttribute("aria-pressed", String(b === chosen)));
  const modes = [...root.querySelectorAll("[data-show]")];
  const zooms = [...root.querySelectorAll("[data-zoom]")];
  const frames = [...root.querySelectorAll(".frame")];

  function show(mode) {
    clearInterval(timer);
    root.dataset.mode = mode;
    if (mode === "flicker")
      timer = setInterval(() => { root.dataset.shown = root.dataset.shown === "after" ? "before" : "after"; }, 600);
    press(modes, modes.find((b) => b.dataset.show === mode));
  }

  function zoom(button) {
    const scale = Number(button.dataset.zoom);
    for (const film of root.querySelectorAll(".film")) film.style.transform = scale === 1 ? "" : `scale(${scale})`;
    press(zooms, button);
  }

  modes.forEach((b) => b.addEventListener("click", () => show(b.dataset.show)));
  zooms.forEach((b) => b.addEventListener("click", () => zoom(b)));
  for (const frame of frames) {
    const range = frame.querySelector("input");
    // One divider for all three: it is the same comparison.
    range.addEventListener("input", () => {
      root.style.setProperty("--split", `${range.value}%`);
      frames.forEach((other) => { other.querySelector("input").value = range.value; });
    });
    frame.addEventListener("pointermove", (event) => {
      if (event.buttons) return; // the divider is being dragged
      const box = frame.getBoundingClientRect();
      const at = [100 * (event.clientX - box.left) / box.width, 100 * (event.clientY - box.top) / box.height];
      frame.querySelectorAll(".film").forEach((film) => { film.style.transformOrigin = `${at[0]}% ${at[1]}%`; });
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.key !== "x" || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input[type=text], input[type=search], textarea")) return;
    show(root.dataset.mode === "after" ? "before" : "after");
  });
})();
