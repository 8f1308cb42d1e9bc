// Dragging by mouse, pen or finger. What is dragged names its position (data-position), a zone is where it may be dropped.

const NEAR = 6; // pixels before a press becomes a drag

export function dragging(root, { handle, zone, drop }) {
  let held = null;

  root.addEventListener("pointerdown", (event) => {
    const source = event.button === 0 && event.isPrimary ? event.target.closest?.(handle) : null;
    if (!source || (event.pointerType === "touch" && !source.matches(".chip"))) return;
    held = { source, x: event.clientX, y: event.clientY, ghost: null, over: null, id: event.pointerId };
  });

  window.addEventListener("pointermove", (event) => {
    if (held === null || event.pointerId !== held.id) return;
    if (held.ghost === null) {
      if (Math.hypot(event.clientX - held.x, event.clientY - held.y) < NEAR) return;
      held.ghost = ghostOf(held.source);
      document.body.classList.add("dragging");
    }
    held.ghost.style.transform = `translate(${event.clientX}px, ${event.clientY}px)`;
    const over = document.elementFromPoint(event.clientX, event.clientY)?.closest?.(zone) ?? null;
    if (over !== held.over) {
      held.over?.classList.remove("over");
      over?.classList.add("over");
      held.over = over;
    }
  });

  const end = (event) => {
    if (held === null || event.pointerId !== held.id) return;
    const { source, ghost, over } = held;
    held = null;
    if (ghost === null) return;
    ghost.remove();
    over?.classList.remove("over");
    document.body.classList.remove("dragging");
    source.addEventListener("click", swallow, { capture: true, once: true });
    setTimeout(() => source.removeEventListener("click", swallow, { capture: true }), 0);
    if (over !== null && event.type === "pointerup") drop(source.dataset.position, over);
  };
  for (const type of ["pointerup", "pointercancel"]) window.addEventListener(type, end);
}

function ghostOf(source) {
  const ghost = document.createElement("span");
  ghost.className = "ghost chip";
  ghost.textContent = String(Number(source.dataset.position) + 1);
  document.body.append(ghost);
  return ghost;
}

// The click that ends a drag is no click.
function swallow(event) {
  event.preventDefault();
  event.stopImmediatePropagation();
}
