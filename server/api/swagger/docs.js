// Gets the OpenAPI document, with a key where the server wants one, and shows it in Swagger UI.
const ask = document.getElementById("ask");
const key = document.getElementById("key");
const problem = document.getElementById("problem");

async function open(given) {
  const headers = given ? { authorization: `Bearer ${given}` } : {};
  const answer = await fetch("openapi.json", { headers });
  const body = await answer.json();
  if (answer.status === 401) {
    ask.hidden = false;
    problem.textContent = given ? body.error.message : "";
    key.focus();
    return;
  }
  if (!answer.ok) throw new Error(body.error?.message ?? `status ${answer.status}`);
  // This page's own address: right behind a proxy that serves the API below a path.
  body.servers = [{ url: new URL(".", location.href).href.replace(/\/$/, "") }];
  ask.hidden = true;
  const ui = SwaggerUIBundle({
    spec: body,
    dom_id: "#ui",
    deepLinking: true,
    validatorUrl: null,
    defaultModelsExpandDepth: 0,
    onComplete: () => given && ui.preauthorizeApiKey("key", given),
  });
}

function failed(error) {
  ask.hidden = false;
  problem.textContent = `The document could not be loaded: ${error.message}`;
}

ask.addEventListener("submit", (event) => {
  event.preventDefault();
  open(key.value.trim()).catch(failed);
});
open("").catch(failed);
