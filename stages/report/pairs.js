// Shows the numbers of a token under the pointer, or the one that the arrow keys reach, and filters the
// shown pairs.
"use strict";

{
  const tip = document.getElementById("tip");
  let current = null;

  const text = (x) => (+x).toFixed(3).replace("-", "−");

  function hide() { // the arrow keys still continue from this token
    current?.classList.remove("current");
    tip.hidden = true;
  }

  function show(token) {
    hide();
    if (!token) return;
    current = token;
    token.classList.add("current");
    const response = token.parentElement;
    const number = Array.prototype.indexOf.call(response.children, token);
    const policy = +response.dataset.policy.split(" ")[number];
    const reference = +response.dataset.reference.split(" ")[number];
    const quoted = JSON.stringify(token.textContent);
    const numbers = `log-ratio ${text(policy - reference)} nats ` +
      `(policy ${text(policy)}, reference ${text(reference)})`;
    const context = token.classList.contains("context");
    tip.textContent = `token ${number + 1}, ${quoted}: ` +
      (context ? "context, which the policy does not write" : numbers);
    tip.hidden = false;
    const box = token.getBoundingClientRect(), own = tip.getBoundingClientRect();
    const above = box.top - own.height - 6;
    tip.style.left = `${Math.max(4, Math.min(box.left, innerWidth - own.width - 4))}px`;
    tip.style.top = `${above > 4 ? above : box.bottom + 6}px`;
  }

  document.addEventListener("change", (event) => {
    if (event.target.name !== "reason") return;
    const reason = event.target.value;
    for (const pair of document.querySelectorAll("[data-reasons]"))
      pair.hidden = reason !== "all" && !pair.dataset.reasons.split(",").includes(reason);
  });

  const tokenOf = (target) => target.closest?.(".tokens > i");
  document.addEventListener("pointerover", (event) => show(tokenOf(event.target)));
  document.addEventListener("pointerdown", (event) => show(tokenOf(event.target)));
  document.addEventListener("scroll", hide, { passive: true });
  for (const response of document.querySelectorAll(".tokens")) {
    response.addEventListener("blur", hide);
    response.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (event.key === "Escape") hide();
      if (!step) return;
      event.preventDefault();
      const inside = current?.parentElement === response;
      const next = inside
        ? step > 0 ? current.nextElementSibling : current.previousElementSibling
        : response.firstElementChild;
      if (next) show(next);
    });
  }
}
