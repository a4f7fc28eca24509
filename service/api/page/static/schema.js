// What the API says of its own fields: types, ranges, choices. The page knows no range by itself.

const inWords = (legal) => legal.replace(/^(a number|an integer) (from )?/, "").replace(/^seconds /, "");

/**
 * The fields of a route's body.
 *
 * Returns a Map from name to { name, type, min, max, isOpenMin, choices, legal }; type is integer, number, boolean,
 * string, texts (one or several) or json (anything else). Empty without a description.
 */
export function fieldsOf(openapi, path) {
  const body = openapi?.paths[path]?.post?.requestBody?.content?.["application/json"]?.schema;
  const properties = resolve(openapi, body)?.properties ?? {};
  return new Map(Object.entries(properties).map(([name, schema]) => [name, field(openapi, name, schema)]));
}

function resolve(openapi, schema) {
  if (!schema?.$ref) return schema;
  return openapi.components.schemas[schema.$ref.split("/").pop()];
}

function field(openapi, name, schema) {
  const kinds = (schema.anyOf ?? [schema]).map((kind) => resolve(openapi, kind)).filter((kind) => kind.type !== "null");
  const [kind] = kinds;
  const min = kind.minimum ?? kind.exclusiveMinimum;
  return {
    name,
    type: typeOf(kinds),
    min,
    max: kind.maximum ?? kind.exclusiveMaximum,
    isOpenMin: kind.minimum === undefined && kind.exclusiveMinimum !== undefined,
    choices: kind.enum ?? [],
    initial: schema.default,
    legal: inWords(schema.description ?? ""),
  };
}

function typeOf(kinds) {
  if (kinds.length > 1) {
    const areTexts = kinds.every((kind) => kind.type === "string" || kind.items?.type === "string");
    return areTexts ? "texts" : "json";
  }
  return ["integer", "number", "boolean", "string"].includes(kinds[0].type) ? kinds[0].type : "json";
}
