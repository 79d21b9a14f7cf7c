(() => {
  // Which of the drawings is shown is kept in the address, so that a link opens the same view.
  const chooser = document.querySelector(".axes");
  if (!chooser) return;
  const boxes = [...chooser.querySelectorAll("input")];
  const blocks = [...document.querySelectorAll(".charts[data-axis]")];
  const show = (axis) => {
    for (const block of blocks) block.hidden = block.dataset.axis !== axis;
    for (const box of boxes) box.checked = box.value === axis;
  };
  chooser.hidden = false;
  chooser.addEventListener("change", (event) => {
    show(event.target.value);
    history.replaceState(null, "", "#axis=" + event.target.value);
  });
  const open = () => {
    const asked = new URLSearchParams(location.hash.slice(1)).get("axis");
    show(boxes.some((box) => box.value === asked) ? asked : boxes[0].value);
  };
  window.addEventListener("hashchange", open);
  open();
})();
