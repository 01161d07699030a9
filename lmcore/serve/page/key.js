// The field for an API key, shown once the server has asked for one.

import { useKey } from "./api.js";
import { find } from "./dom.js";

/** Connect the field: `onKey()` is called when a key has been entered. */
export function keyField(onKey) {
  find("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    useKey(find("key").value.trim());
    find("key").value = "";
    find("key-form").hidden = true;
    onKey();
  });
}

/** Show the field, and put the cursor into it. */
export function askForKey() {
  find("key-form").hidden = false;
  find("key").focus();
}
