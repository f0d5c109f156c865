// The running answer as it arrives: no picture of its own, it hands what came to the panes.

import { ask, command, emit, isStale, repeat, replaced, state } from "./session.js";
import { recall, remember } from "./dom.js";

const SILENCE = 15_000; // the server speaks at least every 5 s while an answer runs

let heard = 0;
const tabs = new BroadcastChannel("qv.conversation"); // other tabs of this browser

export function mount({ watch }) {
  watch(receive);
  setInterval(listen, 3_000);
  tabs.onmessage = ({ data }) => { if (data === state.thread.conversation) reopen(); else emit("elsewhere"); };
  const last = recall("qv.conversation");
  command({ do: "open", conversation: last });
}

function receive(live) {
  if (!live) return;
  heard = performance.now();
  const overtaken = replaced.get(live.command);
  if (overtaken) {
    replaced.delete(live.command);
    if (live.error) emit("refused", { sent: overtaken, error: live.error });
    else emit("accepted", overtaken);
  }
  if (isStale(live)) return;
  const isMine = state.sent && live.command === state.sent.command;
  if (isMine) {
    const sent = state.sent;
    state.sent = null;
    if (live.error) {
      emit("refused", { sent, error: live.error });
      if (live.error.code === "conflict") reopen(sent.conversation); // what was said elsewhere appears
    } else {
      const shown = state.thread.conversation;
      remember("qv.conversation", shown ? JSON.stringify(shown) : null);
      emit("accepted", sent);
      if (sent.do !== "open") tabs.postMessage(shown);
    }
    emit("sent");
  }
  if (live.error) return;
  state.live = live;
  emit("live");
}

/** The conversation as the server has it now; joins an answer that is being written. */
function reopen(conversation = state.thread.conversation) {
  if (conversation && !state.sent) command({ do: "open", conversation });
}

const PATIENCE = 20_000; // a command that got no answer: planning a very long video may take that long
const DESPAIR = 180_000;
const AGAIN = 2_500; // opening costs nothing: asked once more when its answer was lost behind an older one's

/** A command whose answer was lost must not keep the box locked. */
async function giveUp() {
  const sent = state.sent;
  const waited = sent ? performance.now() - sent.at : 0;
  if (sent?.do === "open" && waited > AGAIN && waited < PATIENCE) repeat();
  if (waited < PATIENCE) return;
  const isThere = await ask("status").then(() => true, () => false);
  if (state.sent !== sent || (isThere && waited < DESPAIR)) return;
  state.sent = null;
  emit("refused", { sent, error: { code: "lost_connection" } });
  emit("sent");
}

/** An answer that fell silent (a lost connection, a sleeping laptop): open the conversation again, which re-attaches. */
function listen() {
  giveUp();
  const live = state.live;
  const runs = live?.state === "partial" && live.conversation === state.thread.conversation;
  if (runs && performance.now() - heard > SILENCE) {
    heard = performance.now();
    reopen();
  }
}
