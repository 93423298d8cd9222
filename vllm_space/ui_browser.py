"""What the page does in the visitor's browser, without asking the server: JavaScript functions over Gradio's values.

Gradio calls each with the values of an event's inputs, and takes an array of its outputs' values, where
{__type__: "update"} changes a component's properties. One that throws ends its chain of events.

A component that the server updates, even by gr.skip(), it builds anew for that visitor: 6 ms of its one event loop,
which at 64 streams was most of what the page cost.
"""

# A browser may let a frame keep nothing, and the Hub shows a Space in one. To touch localStorage throws there, in the
# middle of Gradio's work: the page came to nothing where that fell together with other parts of it. This one takes its
# place, for as long as the page is open.
HEAD = """
<script>
try {
  window.localStorage;
} catch {
  const kept = new Map();
  Object.defineProperty(window, "localStorage", {value: {
    getItem: (key) => kept.get(key) ?? null,
    setItem: (key, value) => kept.set(key, String(value)),
    removeItem: (key) => kept.delete(key),
    clear: () => kept.clear(),
  }});
}
</script>
"""

# Esc presses the Stop button that is in sight; on a phone the sidebar begins closed.
ON_LOAD = """
() => {
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    [...document.querySelectorAll(".stop-button")].find((one) => one.offsetParent && !one.disabled)?.click();
  });
  if (window.innerWidth < 768) document.querySelector("#sidebar .toggle-button")?.click();
}
"""

SHOW = "() => ({__type__: 'update', visible: true})"
HIDE = "() => ({__type__: 'update', visible: false})"
START = "() => ({__type__: 'update', active: true})"
REST = "() => ({__type__: 'update', active: false})"

CLICK_DOWNLOAD = "() => document.querySelector('#download').click()"

# -- the message box of the chat -----------------------------------------------------------------------------------

ANSWERING = "() => ({__type__: 'update', submit_btn: false, stop_btn: true})"
READY = "() => ({__type__: 'update', submit_btn: true, stop_btn: false})"

# (message box, conversation) -> [the message on its way, conversation that ends with it, message box]. Nothing happens
# where there is no message, or an answer is running.
SEND = """
(message, conversation) => {
  const answering = document.querySelector("#message .stop-button");
  if (answering || !(message.text.trim() || message.files.length)) throw new Error("nothing to send");
  const text = message.text ? [{type: "text", text: message.text}] : [];
  const files = message.files.map((file) => ({type: "file", file, alt_text: null}));
  const said = {role: "user", content: [...text, ...files], metadata: null, options: null};
  const box = {__type__: "update", value: {text: "", files: []}, submit_btn: false, stop_btn: true};
  return [message, [...conversation, said], box];
}
"""

# (message on its way, conversation) -> [conversation, message box]: one that nothing followed goes back into the box.
NOT_SENT = """
(message, conversation) => {
  const box = {__type__: "update", submit_btn: true, stop_btn: false};
  if (conversation.at(-1)?.role !== "user") return [conversation, box];
  return [conversation.slice(0, -1), {...box, value: message}];
}
"""

# -- the buttons Complete, Stop and Undo of the completion ------------------------------------------------------------

COMPLETING = "() => [false, true, false].map((interactive) => ({__type__: 'update', interactive}))"
COMPLETED = "() => [true, false, true].map((interactive) => ({__type__: 'update', interactive}))"

# -- the conversations that the browser keeps: [{id, title, messages}], the newest first ---------------------------

KEPT = 50  # conversations
KEPT_SIZE = 2 * 2**20  # characters of JSON; a browser grants an address about five million, encrypted

_LISTED = """
const listed = (kept, id) => [
  {__type__: "update", choices: kept.map((one) => [one.title, one.id]), value: id, visible: kept.length > 0},
  {__type__: "update", interactive: id !== null},
];
"""

# (kept conversations) -> [their list, Delete]
LIST = f"(kept) => {{ {_LISTED} return listed(kept, null); }}"

# (the conversation as it is now, kept conversations) -> [kept conversations, their list, Delete, the timer that looks
# for an engine that failed]. The oldest make room where it is needed.
KEEP = f"""
(now, kept) => {{
  {_LISTED}
  if (!now) throw new Error("nothing to keep");
  const {{failed, ...newest}} = now;
  let room = {KEPT_SIZE};
  const all = [newest, ...kept.filter((one) => one.id !== newest.id)].slice(0, {KEPT});
  const found = all.filter((one) => (room -= JSON.stringify(one).length) >= 0);
  return [found, ...listed(found, newest.id), failed ? {{__type__: "update", active: true}} : {{__type__: "update"}}];
}}
"""

# (kept conversations, id) -> what is sent to the server: the messages of that one
OPEN = "(kept, id) => [kept.find((one) => one.id === id)?.messages ?? [], id]"

# () -> [conversation, chosen one of the list, Delete]
START_ANEW = "() => [[], null, {__type__: 'update', interactive: false}]"

# (kept conversations, id) -> [kept conversations, conversation, their list, Delete]
FORGET = f"""
(kept, id) => {{
  {_LISTED}
  const found = kept.filter((one) => one.id !== id);
  return [found, [], ...listed(found, null)];
}}
"""
