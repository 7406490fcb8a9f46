"use strict";

function make(name, text = "", kind = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function table(rows) {
  const made = make("table");
  for (const row of rows) {
    const line = made.insertRow();
    for (const cell of row) line.insertCell().textContent = cell;
  }
  return made;
}

function resolve(schema, all) {
  if (Array.isArray(schema)) return schema.map((item) => resolve(item, all));
  if (schema === null || typeof schema !== "object") return schema;
  if (schema.$ref) return resolve(all[schema.$ref.split("/").at(-1)], all);
  return Object.fromEntries(Object.entries(schema).map(([key, value]) => [key, resolve(value, all)]));
}

function describe(path, method, operation, shared, all) {
  const details = make("details", "", "operation");
  const summary = make("summary");
  summary.append(make("span", method.toUpperCase(), "method"), make("code", path), ` ${operation.summary}`);
  details.append(summary);
  const parameters = [...shared, ...(operation.parameters || [])];
  if (parameters.length) {
    details.append(make("h2", "Parameters"), table(parameters.map((p) => [p.name, p.in, p.schema.type, p.description || ""])));
  }
  for (const [kind, content] of Object.entries(operation.requestBody?.content || {})) {
    details.append(make("h2", `Body: ${kind}`));
    if (content.schema) details.append(make("pre", JSON.stringify(resolve(content.schema, all), null, 1)));
  }
  details.append(make("h2", "Answers"));
  details.append(table(Object.entries(operation.responses).map(([status, answer]) => [status, answer.description])));
  return details;
}

fetch("openapi.json").then((response) => response.json()).then((api) => {
  document.getElementById("about").textContent = `${api.info.title} ${api.info.version}. ${api.info.description}`;
  for (const [path, item] of Object.entries(api.paths)) {
    for (const method of ["get", "post"]) {
      if (item[method]) {
        const made = describe(path, method, item[method], item.parameters || [], api.components.schemas);
        document.getElementById("operations").append(made);
      }
    }
  }
});
