// gradio 6.31: BrowserState reads localStorage outside its own try.
//
// A browser can forbid a frame to store anything, and the Hub shows a Space in a frame. Merely touching localStorage
// throws there, in the middle of Gradio's rendering, and the page stays blank if other updates are pending. This
// stand-in lasts for as long as the page is open.
try {
  window.localStorage;
} catch {
  const items = new Map();
  Object.defineProperty(window, "localStorage", {
    value: {
      getItem: (key) => items.get(key) ?? null,
      setItem: (key, value) => items.set(key, String(value)),
      removeItem: (key) => items.delete(key),
      clear: () => items.clear(),
    },
  });
}
