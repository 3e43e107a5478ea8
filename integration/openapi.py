# SPDX-License-Identifier: GPL-3.0-or-later
"""The description of the control interface, docs/openapi.yaml, and whether an answer is inside it."""

import json
import os
import re
import sys

from lab import HERE

ROOT = os.path.dirname(HERE)
# What `make deps` has put there; system-wide modules do as well.
sys.path.append(os.path.join(ROOT, ".build", "python"))


class Description:
    """The description; `skip` says why it cannot be read here."""

    def __init__(self):
        self.path = os.path.join(ROOT, "docs", "openapi.yaml")
        self.skip = None
        try:
            import jsonschema
            import yaml
        except ImportError as error:
            self.skip = "%s; run make deps" % error
            return
        self.validator = jsonschema.Draft202012Validator
        with open(self.path) as file:
            self.document = yaml.safe_load(file)

    def operations(self):
        """{(method, path)} of the description."""
        return {(method.upper(), path) for path, item in self.document["paths"].items()
                for method in item if method in ("get", "post", "put", "delete", "patch")}

    def routes(self):
        """{(method, path)} of the source."""
        found, folder = set(), os.path.join(ROOT, "Sources", "Daemon")
        for name in os.listdir(folder):
            if name.endswith(".swift"):
                with open(os.path.join(folder, name)) as file:
                    for method, path in re.findall(r'ControlRoute\(\s*"([A-Z]+)",\s*"([^"]+)"', file.read()):
                        found.add((method, re.sub(r":(\w+)", r"{\1}", path)))
        return found

    def documents(self):
        """{schema's name, or (schema's name, property) of one that is written in place: {member: whether it may be absent}} of
        the source."""
        found, folder = {}, os.path.join(ROOT, "Sources", "ControlInterface")
        for name in sorted(os.listdir(folder)):
            with open(os.path.join(folder, name)) as file:
                lines = file.read().splitlines()
            inner, outer = None, None
            for line in lines:
                if match := re.match(r"( *)public struct (\w+): .*\bCodable\b", line):
                    if match.group(1):
                        inner = next((outer, member) for member, (kind, _) in found[outer].items() if match.group(2) in kind)
                        found[inner] = {}
                    else:
                        outer = match.group(2)
                        found[outer] = {}
                elif re.match(r"(public|struct|enum|extension|private)\b", line):
                    outer = None
                elif line == "    }":
                    inner = None
                elif match := re.match(r"( +)public (?:var|let) (\w+): ([^={]+?)(?: = .*)?$", line):
                    if place := inner if len(match.group(1)) == 8 else outer:
                        found[place][match.group(2)] = (match.group(3), match.group(3).endswith("?"))
        return {place: {member: optional for member, (_, optional) in members.items()} for place, members in found.items()}

    def described(self):
        """The same of the description."""
        found, schemas = {}, self.document["components"]["schemas"]
        def add(place, schema):
            found[place] = {member: member not in schema.get("required", ()) for member in schema["properties"]}
        for name, schema in schemas.items():
            if "properties" not in schema:
                continue
            add(name, schema)
            for member, value in schema["properties"].items():
                for inline in (value, value.get("items", {})):
                    if "properties" in inline:
                        add((name, member), inline)
        return found

    def names(self, enumeration):
        """The raw values of an enumeration of the source."""
        folder = os.path.join(ROOT, "Sources", "ControlInterface")
        for name in os.listdir(folder):
            with open(os.path.join(folder, name)) as file:
                match = re.search(r"enum %s: String.*?\n( *)\}" % enumeration, file.read(), re.DOTALL)
            if match:
                return re.findall(r'case \w+ = "([^"]+)"', match.group(0))
        return []

    def with_values(self, parameters, members, path):
        """Write the description to a file in which parameters may have these values, too, and members of orders have no
        others, so that orders are carried out: {parameter: [values]}, {member: [values]}. Answers are described as ever."""
        document = json.loads(json.dumps(self.document))
        def visit(here):
            if isinstance(here, list):
                for each in here:
                    visit(each)
            elif isinstance(here, dict):
                for name in set(here.get("properties", ())) & set(members):
                    here["properties"][name] = {"enum": members[name]}
                    if None not in members[name]:
                        here["required"] = sorted(set(here.get("required", ())) | {name})
                if here.get("in") in ("query", "path") and here.get("name") in parameters:
                    here["schema"] = {"anyOf": [{"enum": parameters[here["name"]]}, here["schema"]]}
                for each in here.values():
                    visit(each)
        schemas = document["components"]["schemas"]
        # What reports share with orders is described apart.
        schemas["OrderedHost"] = json.loads(json.dumps(schemas["DrainHost"]))
        schemas["DrainOrder"]["properties"]["to"]["items"] = {"$ref": "#/components/schemas/OrderedHost"}
        for name in ("MigrationOrder", "OrderedHost"):
            visit(schemas[name])
        del schemas["DrainOrder"]["properties"]["client"]
        to = schemas["DrainOrder"]["properties"].pop("to")
        visit(schemas["DrainOrder"])
        schemas["DrainOrder"]["properties"]["to"] = dict(to, minItems=1, maxItems=1)
        visit(document["components"]["parameters"])
        visit(document["paths"])
        with open(path, "w") as file:
            json.dump(document, file)
        return path

    def resolve(self, value):
        while isinstance(value, dict) and "$ref" in value:
            here = self.document
            for part in value["$ref"].removeprefix("#/").split("/"):
                here = here[part.replace("~1", "/")]
            value = here
        return value

    def violations(self, method, path, response):
        """What about this response is not in the description: a list of sentences."""
        operation = self.document["paths"][path].get(method.lower())
        if operation is None:
            answers = {"default": {"$ref": "#/components/responses/AnyRequest"}}
        else:
            answers = operation["responses"]
        answer = self.resolve(answers.get(str(response.status)) or answers.get("default"))
        if not answer:
            return ["status %d is not described" % response.status]
        content = answer.get("content", {})
        if response.media_type not in content:
            return ["media type %r is not described for %d" % (response.media_type, response.status)]
        value = response.json if "json" in response.media_type else response.body.decode()
        return self.misfits(content[response.media_type]["schema"], value)

    def misfits(self, schema, value):
        """What about `value` does not fit `schema`, whose references are into the description."""
        whole = dict(schema, components=self.document["components"]) if "$ref" not in schema else {
            "allOf": [schema], "components": self.document["components"]}
        return ["%s: %s" % ("/".join(map(str, error.absolute_path)), error.message[:300])
                for error in self.validator(whole).iter_errors(value)]

    def problem(self, value):
        return self.misfits({"$ref": "#/components/schemas/Problem"}, value)
