// The server's own format: POST /v1/s2s/generate and GET /v1/s2s/model.

function headers(key) {
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function checked(response) {
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new Error(body.error ?? `The server answered with status ${response.status}.`);
}

function post(fields, key, signal) {
  const body = JSON.stringify(fields);
  return fetch("/v1/s2s/generate", { method: "POST", headers: headers(key), body, signal }).then(checked);
}

export async function describe(key) {
  return (await checked(await fetch("/v1/s2s/model", { headers: headers(key) }))).json();
}

export async function generate(fields, key, signal) {
  return (await post(fields, key, signal)).json();
}

// The events of a streaming request, as they arrive.
export async function* events(fields, key, signal) {
  const response = await post({ ...fields, stream: true }, key, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const event = JSON.parse(part.replace(/^data: /, ""));
      if (event.error) throw new Error(event.error);
      yield event;
    }
  }
}
