// The WCAG 2 contrast ratio of every text that is shown: [{text, ratio}]. Colours are blended on a canvas, so that
// any notation of CSS and any transparency counts as it is seen.
() => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const seen = (layers) => {
    pen.globalAlpha = 1;
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, 1, 1);
    for (const [colour, alpha] of layers) {
      pen.globalAlpha = alpha;
      pen.fillStyle = colour;
      pen.fillRect(0, 0, 1, 1);
    }
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((each) => each / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const backgrounds = (node) => {
    const layers = [];
    for (let each = node; each; each = each.parentElement) layers.unshift([getComputedStyle(each).backgroundColor, 1]);
    const cell = node.previousElementSibling;
    if (cell && cell.classList.contains("cell")) {
      const style = getComputedStyle(cell);
      layers.push([style.fill, parseFloat(style.fillOpacity)]);
    }
    return layers;
  };
  const found = [];
  for (const node of document.body.querySelectorAll("*")) {
    const own = [...node.childNodes].filter((each) => each.nodeType === 3).map((each) => each.data.trim()).join("");
    const inChart = node instanceof SVGElement;
    if (!own || (inChart && node.tagName !== "text") || !node.getClientRects().length) continue;
    const style = getComputedStyle(node);
    const below = backgrounds(node);
    const [a, b] = [seen(below), seen([...below, [inChart ? style.fill : style.color, 1]])].map(luminance);
    found.push({ text: own, class: node.getAttribute("class"), ratio: (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) });
  }
  return found;
}
