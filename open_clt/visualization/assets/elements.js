/* What the scripts of all pages share: how elements are made, and how numbers are written.

     html, svg(tag, attributes, ...children)    an element; children are elements or texts, attributes that are null are left out
     digits, signed(value)                      a number in three digits, and with its sign and a real minus
     percent(share)                             a share in percent

   Text enters a page as text nodes and attributes only, never as HTML. */
"use strict";

var OpenCLT = OpenCLT || {};

(() => {
  const make = (space) => (tag, attributes = {}, ...children) => {
    const element = space ? document.createElementNS(space, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== null && value !== undefined) element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  };
  const digits = (value) => {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size < 0.001 || size >= 1e5) return value.toExponential(1).replace("-", "\u2212");
    return size >= 100 ? value.toFixed(0) : value.toFixed(size >= 10 ? 1 : size >= 0.1 ? 2 : 3);
  };
  const signed = (value) => (value < 0 ? "\u2212" : "+") + digits(Math.abs(value));
  const percent = (share) => (share > 0 && share < 0.001 ? "<0.1%" : `${(100 * share).toFixed(share < 0.1 ? 1 : 0)}%`);

  Object.assign(OpenCLT, { html: make(null), svg: make("http://www.w3.org/2000/svg"), signed, digits, percent });
})();
