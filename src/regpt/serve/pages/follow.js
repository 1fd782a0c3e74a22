// A stream of events that goes on where it stopped, and rests while nobody looks.

import { ask, events, Refused } from "./api.js";

/** Hand each event of `path` to `take`, for as long as the page lives; `state` hears how it goes. */
export async function follow(path, take, state) {
  let id = null;
  let wait = 1000;
  for (;;) {
    await untilSeen();
    const stop = new AbortController();
    const hide = () => document.hidden && stop.abort();
    document.addEventListener("visibilitychange", hide);
    try {
      const headers = id === null ? {} : { "last-event-id": id };
      const response = await ask(path, { signal: stop.signal, headers });
      state("open");
      wait = 1000;
      for await (const event of events(response)) {
        take(event);
        id = event.id ?? id;
      }
      state("lost");
    } catch (error) {
      if (stop.signal.aborted) continue;
      state("lost", error instanceof Refused ? error.message : "");
      if (error instanceof Refused && error.status === 404) return;
    } finally {
      document.removeEventListener("visibilitychange", hide);
    }
    await new Promise((resolve) => setTimeout(resolve, wait));
    wait = Math.min(wait * 2, 15000);
  }
}

/** Wait until the page can be seen. */
function untilSeen() {
  if (!document.hidden) return Promise.resolve();
  return new Promise((resolve) => {
    const seen = () => {
      if (document.hidden) return;
      document.removeEventListener("visibilitychange", seen);
      resolve();
    };
    document.addEventListener("visibilitychange", seen);
  });
}
