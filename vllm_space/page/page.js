// What the page does in the visitor's browser, without asking the server.
//
// Gradio calls these functions with the values of an event's inputs. They return an array with the
// values of its outputs, where {__type__: "update"} changes a component's properties. A function
// that throws ends its chain of events.

globalThis.vllmSpace = (() => {
  const update = (properties) => ({ __type__: "update", ...properties });

  // Stored conversations are [{id, title, messages}], the newest first.
  const MAX_STORED = 50; // conversations
  const MAX_STORED_SIZE = 2 * 2 ** 20; // characters of JSON; browsers allow a site about 5 million

  // The list of conversations, with one selected or none (null), and the Delete button.
  const listed = (stored, id) => [
    update({
      choices: stored.map((conversation) => [conversation.title, conversation.id]),
      value: id,
      visible: stored.length > 0,
    }),
    update({ interactive: id !== null }),
  ];

  return {
    // When the page opens: Esc presses the visible Stop button; on a phone the sidebar is closed.
    start: () => {
      document.addEventListener("keydown", (event) => {
        if (event.key !== "Escape") return;
        const buttons = [...document.querySelectorAll(".stop-button")];
        buttons.find((button) => button.offsetParent && !button.disabled)?.click();
      });
      if (window.innerWidth < 768) document.querySelector("#sidebar .toggle-button")?.click();
    },

    // -- the Sign out button ----------------------------------------------------------------------

    // () -> the button, with the visitor's name
    nameVisitor: () => update({ value: `Sign out (${gradio_config.username})` }),

    // () -> the button. Then the server shows the login page.
    signOut: async () => {
      // Only its path: behind a proxy, the server may take https for http.
      const { pathname } = new URL(`${gradio_config.root}/logout`);
      const response = await fetch(pathname, { method: "POST" }).catch(() => null);
      if (!response?.ok) return update({ value: "Sign-out failed. Try again." });
      location.reload();
      return update({});
    },

    // -- tabs -------------------------------------------------------------------------------------

    // (whether the tab shows the controls, which tabs' timers run) -> [controls, ...timers]
    selectTab: (showsControls, running) => [
      update({ visible: showsControls }),
      ...running.map((active) => update({ active })),
    ],

    clickDownload: () => document.querySelector("#download").click(),

    // -- the message box of the Chat tab ----------------------------------------------------------

    showStop: () => update({ submit_btn: false, stop_btn: true }),
    showSubmit: () => update({ submit_btn: true, stop_btn: false }),

    // (message box, conversation) -> [the message being sent, the conversation ending with it,
    // message box]. Nothing happens if there is no message, or an answer is running.
    send: (message, conversation) => {
      const isAnswering = document.querySelector("#message .stop-button");
      const isEmpty = !message.text.trim() && !message.files.length;
      if (isAnswering || isEmpty) throw new Error("nothing to send");
      const text = message.text ? [{ type: "text", text: message.text }] : [];
      const files = message.files.map((file) => ({ type: "file", file, alt_text: null }));
      const content = [...text, ...files];
      const question = { role: "user", content, metadata: null, options: null };
      const box = update({ value: { text: "", files: [] }, submit_btn: false, stop_btn: true });
      return [message, [...conversation, question], box];
    },

    // (the message being sent, conversation) -> [conversation, message box]. A question that got no
    // answer returns to the box.
    takeBack: (message, conversation) => {
      const box = update({ submit_btn: true, stop_btn: false });
      if (conversation.at(-1)?.role !== "user") return [conversation, box];
      return [conversation.slice(0, -1), { ...box, value: message }];
    },

    // -- Complete, Stop and Undo on the Completion tab --------------------------------------------

    completing: () => [false, true, false].map((interactive) => update({ interactive })),
    completed: () => [true, false, true].map((interactive) => update({ interactive })),

    // -- stored conversations ---------------------------------------------------------------------

    // (stored) -> [list, Delete]
    list: (stored) => listed(stored, null),

    // (snapshot of the conversation, stored) -> [stored, list, Delete, the timer that waits for an
    // engine to recover]. The oldest conversations make room if necessary.
    store: (snapshot, stored) => {
      if (!snapshot) throw new Error("nothing to store");
      const { failed, ...newest } = snapshot;
      const others = stored.filter((conversation) => conversation.id !== newest.id);
      let room = MAX_STORED_SIZE;
      const kept = [newest, ...others]
        .slice(0, MAX_STORED)
        .filter((conversation) => (room -= JSON.stringify(conversation).length) >= 0);
      return [kept, ...listed(kept, newest.id), failed ? update({ active: true }) : update({})];
    },

    // (stored, id) -> what is sent to the server: the messages of that conversation, id
    open: (stored, id) => [stored.find((conversation) => conversation.id === id)?.messages ?? [], id],

    // () -> [conversation, selected conversation, Delete]
    startNew: () => [[], null, update({ interactive: false })],

    // (stored, id) -> [stored, conversation, list, Delete]
    remove: (stored, id) => {
      const kept = stored.filter((conversation) => conversation.id !== id);
      return [kept, [], ...listed(kept, null)];
    },
  };
})();
