// gradio 6.31: BrowserState accesses localStorage outside its own try block.
//
// A browser can deny storage to frames, and the Hub shows a Space in a frame. Merely accessing
// localStorage throws there, in the middle of Gradio's rendering; if other updates are pending, the
// page stays blank. This in-memory replacement lasts for as long as the page is open.
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
