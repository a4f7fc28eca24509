// Show the API's description. Requests tried on the page go where the page came from, a proxy's sub-path included.

const root = new URL("..", import.meta.url);
const description = await (await fetch(new URL("openapi.json", root))).json();
description.servers = [{ url: root.pathname.replace(/\/$/, "") || "/" }];
const target = document.getElementById("description");

if (window.SwaggerUIBundle) {
  SwaggerUIBundle({
    spec: description,
    domNode: target,
    deepLinking: true,
    tryItOutEnabled: true,
    docExpansion: "list",
    defaultModelsExpandDepth: 0,
    validatorUrl: null, // the default asks a host on the internet
    presets: [SwaggerUIBundle.presets.apis],
  });
} else {
  Redoc.init(description, { hideDownloadButton: false, disableSearch: false }, target);
}
