// The colours: the system's, unless the button has chosen others, which are remembered.

const NAMES = { auto: "Theme: system", light: "Theme: light", dark: "Theme: dark" };
const KEY = "twinlm-theme";

/** Apply the remembered theme, and let a button change it: system, light, dark, and system again. */
export function themeButton(button) {
  const themes = Object.keys(NAMES);
  let theme = remembered();
  const apply = () => {
    document.documentElement.dataset.theme = theme;
    button.textContent = NAMES[theme];
    document.dispatchEvent(new Event("themechange"));
  };
  button.addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    remember(theme);
    apply();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", apply);
  apply();
}

function remembered() {
  try {
    const theme = localStorage.getItem(KEY);
    return theme in NAMES ? theme : "auto";
  } catch { // storage may be switched off
    return "auto";
  }
}

function remember(theme) {
  try {
    localStorage.setItem(KEY, theme);
  } catch { // storage may be switched off
  }
}
