// What the page does in the visitor's browser, without asking the server.
//
// Gradio calls these functions with the values of an event's inputs and takes an array of its outputs' values, in which
// {__type__: "update"} changes a component's properties. One that throws ends its chain of events.

globalThis.vllmSpace = (() => {
  const update = (properties) => ({ __type__: "update", ...properties });

  // -- the list of stored conversations: [{id, title, messages}], the newest first ------------------------------------

  const MOST_STORED = 50; // conversations
  const MOST_STORED_SIZE = 2 * 2 ** 20; // characters of JSON; a browser grants a site about five million, encrypted

  const listed = (stored, id) => [
    update({ choices: stored.map((each) => [each.title, each.id]), value: id, visible: stored.length > 0 }),
    update({ interactive: id !== null }),
  ];

  return {
    // Esc presses the Stop button that is in sight; on a phone the sidebar begins closed.
    start: () => {
      document.addEventListener("keydown", (event) => {
        if (event.key !== "Escape") return;
        [...document.querySelectorAll(".stop-button")].find((each) => each.offsetParent && !each.disabled)?.click();
      });
      if (window.innerWidth < 768) document.querySelector("#sidebar .toggle-button")?.click();
    },

    show: () => update({ visible: true }),
    hide: () => update({ visible: false }),
    startTimer: () => update({ active: true }),
    stopTimer: () => update({ active: false }),
    clickDownload: () => document.querySelector("#download").click(),

    // -- the message box of the chat ----------------------------------------------------------------------------------

    answering: () => update({ submit_btn: false, stop_btn: true }),
    ready: () => update({ submit_btn: true, stop_btn: false }),

    // (message box, conversation) -> [the message on its way, the conversation that ends with it, message box]. Nothing
    // happens if there is no message, or an answer is running.
    send: (message, conversation) => {
      const answering = document.querySelector("#message .stop-button");
      if (answering || !(message.text.trim() || message.files.length)) throw new Error("nothing to send");
      const text = message.text ? [{ type: "text", text: message.text }] : [];
      const files = message.files.map((file) => ({ type: "file", file, alt_text: null }));
      const question = { role: "user", content: [...text, ...files], metadata: null, options: null };
      const box = update({ value: { text: "", files: [] }, submit_btn: false, stop_btn: true });
      return [message, [...conversation, question], box];
    },

    // (the message on its way, conversation) -> [conversation, message box]: a question without an answer returns to the
    // box.
    takeBack: (message, conversation) => {
      const box = update({ submit_btn: true, stop_btn: false });
      if (conversation.at(-1)?.role !== "user") return [conversation, box];
      return [conversation.slice(0, -1), { ...box, value: message }];
    },

    // -- the buttons Complete, Stop and Undo of the Completion tab ------------------------------------------------------

    completing: () => [false, true, false].map((interactive) => update({ interactive })),
    completed: () => [true, false, true].map((interactive) => update({ interactive })),

    // -- stored conversations -------------------------------------------------------------------------------------------

    // (stored) -> [their list, Delete]
    list: (stored) => listed(stored, null),

    // (the conversation as it is now, stored) -> [stored, their list, Delete, the timer that looks for an engine that
    // failed]. The oldest make room if it is needed.
    store: (current, stored) => {
      if (!current) throw new Error("nothing to store");
      const { failed, ...newest } = current;
      let room = MOST_STORED_SIZE;
      const all = [newest, ...stored.filter((each) => each.id !== newest.id)].slice(0, MOST_STORED);
      const fitting = all.filter((each) => (room -= JSON.stringify(each).length) >= 0);
      return [fitting, ...listed(fitting, newest.id), failed ? update({ active: true }) : update({})];
    },

    // (stored, id) -> what is sent to the server: the messages of that one
    open: (stored, id) => [stored.find((each) => each.id === id)?.messages ?? [], id],

    // () -> [conversation, the chosen one of the list, Delete]
    startNew: () => [[], null, update({ interactive: false })],

    // (stored, id) -> [stored, conversation, their list, Delete]
    remove: (stored, id) => {
      const rest = stored.filter((each) => each.id !== id);
      return [rest, [], ...listed(rest, null)];
    },
  };
})();
