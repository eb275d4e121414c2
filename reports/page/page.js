// The values of a curve beside the pointer, and folded tables unfolded in print.
"use strict";
for (const svg of document.querySelectorAll("svg[data-series]")) {
  const series = Object.entries(JSON.parse(svg.dataset.series));
  const places = [...new Map(series.flatMap(([, points]) => points.map(([x, , at]) => [x, at])))];
  const cursor = svg.querySelector(".cursor");
  const tip = svg.parentElement.querySelector(".tip");
  const hide = () => {
    tip.hidden = true;
    cursor.setAttribute("x1", -9);
    cursor.setAttribute("x2", -9);
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const scale = box.width / svg.viewBox.baseVal.width;
    const pointer = (event.clientX - box.left) / scale;
    const distance = ([, at]) => Math.abs(at - pointer);
    const [x, at] = places.reduce((a, b) => (distance(b) < distance(a) ? b : a));
    cursor.setAttribute("x1", at);
    cursor.setAttribute("x2", at);
    const lines = series.map(([name, points]) => {
      const point = points.find(([epoch]) => epoch === x);
      const value = point && point[1] !== null ? Number(point[1].toPrecision(5)) : "\u2013";
      return `${name}  ${value}`;
    });
    tip.textContent = [`epoch ${x}`, ...lines].join("\n");
    tip.hidden = false;
    const left = at * scale + (at > svg.viewBox.baseVal.width / 2 ? -tip.offsetWidth - 10 : 10);
    tip.style.left = `${Math.max(0, Math.min(left, box.width - tip.offsetWidth))}px`;
    tip.style.top = `${box.top - svg.parentElement.getBoundingClientRect().top + 8}px`;
  });
  svg.addEventListener("pointerleave", hide);
}
addEventListener("beforeprint", () => {
  for (const fold of document.querySelectorAll("#settings details")) fold.open = true;
});
