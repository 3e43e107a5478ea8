# SPDX-License-Identifier: GPL-3.0-or-later
"""The description of the control interface, docs/openapi.yaml, and whether an answer is inside it."""

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
