// What a stream of the API says, as tokens: completions and chats have different fields for the same.

/** Return the tokens of a completion's event: [{text, token, logprob, top}]. */
export function completionTokens(choice) {
  const { text = "", logprobs } = choice;
  if (!logprobs?.tokens?.length) return text === "" ? [] : [{ text }];
  const tokens = logprobs.tokens.map((token, index) => ({
    token,
    logprob: logprobs.token_logprobs?.[index] ?? null,
    top: alternatives(logprobs.top_logprobs?.[index]),
  }));
  return withText(tokens, text);
}

/** Return the tokens of a chat's event, as `completionTokens` does. */
export function chatTokens(choice) {
  const text = choice.delta?.content ?? "";
  const content = choice.logprobs?.content;
  if (!content?.length) return text === "" ? [] : [{ text }];
  const tokens = content.map(({ token, logprob, top_logprobs }) => ({ token, logprob, top: top_logprobs ?? null }));
  return withText(tokens, text);
}

function alternatives(top) {
  return top ? Object.entries(top).map(([token, logprob]) => ({ token, logprob })) : null;
}

/**
 * Divide the text of an event among its tokens. The server's text is what counts: a token may be a part of a character,
 * which is shown with the token that completes it.
 */
function withText(tokens, text) {
  if (tokens.map(({ token }) => token).join("") === text) return tokens.map((token) => ({ ...token, text: token.token }));
  return tokens.map((token, index) => ({ ...token, text: index === tokens.length - 1 ? text : "" }));
}
