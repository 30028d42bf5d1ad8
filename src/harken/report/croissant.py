"""A datasheet as Croissant 1.0 with the responsible-AI vocabulary: JSON-LD that data catalogs read.

Source: docs.mlcommons.org/croissant/docs/croissant-spec.html and croissant-rai-spec.html.
"""

from typing import Any

from harken.report.disclosure import Datasheet

_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}

_FIELDS = {
    "prompts": {"id": "id", "source": "source"},
    "completions": {"id": "id", "prompt_id": "prompt_id", "text": "message.content"},
    "judgments": {"id": "id", "judge": "judge.id", "prompt_id": "prompt_id", "answer_type": "answer.type"},
}
"""File -> field -> path in its JSON."""


def croissant(sheet: Datasheet, files: dict[str, str]) -> dict[str, Any]:
    """Return a datasheet as JSON-LD.

    Args:
        sheet: what it states.
        files: name -> sha256 of the export's files; empty where there is no export beside the datasheet.
    """
    about = sheet.about
    licenses = [name for name in dict.fromkeys([about.license, *(one.license for one in sheet.sources)]) if name]
    found: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": ["http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0"],
        "name": about.title,
        "description": about.description or "Judgments about completions of language models.",
        "version": about.version,
        "datePublished": sheet.made_at,
        "license": licenses or ["not stated"],
        "url": about.url,
        "citeAs": about.citation,
        "publisher": {"@type": "Organization", "name": about.publisher} if about.publisher else None,
        "isLiveDataset": False,
        "rai:dataCollection": about.recruitment,
        "rai:dataCollectionType": ["Manual Human Curator"],
        "rai:dataAnnotationProtocol": about.instructions,
        "rai:annotationsPerItem": f"{sheet.per_completion_mean:.2f} judgments a completion on average",
        "rai:annotatorDemographics": _demographics(sheet),
        "rai:dataAnnotationAnalysis": [_agreement(one) for one in sheet.agreement],
        "rai:dataBiases": _biases(sheet),
        "rai:dataLimitations": list(sheet.known_gaps),
        "rai:dataUseCases": about.intended_use,
        "rai:personalSensitiveInformation": [release.table.attribute for release in sheet.demographics],
        "isBasedOn": [
            {
                "@type": "CreativeWork",
                "name": one.name,
                "license": one.license or "not stated",
                "identifier": one.sha256,
            }
            for one in sheet.sources
        ],
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": name,
                "name": name,
                "contentUrl": name,
                "encodingFormat": "application/jsonlines",
                "sha256": digest,
            }
            for name, digest in files.items()
        ],
        "recordSet": [_record_set(name) for name in _FIELDS if f"{name}.jsonl" in files],
    }
    return {key: value for key, value in found.items() if value not in (None, "", [])}


def _record_set(name: str) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"{name}/{field}",
                "name": f"{name}/{field}",
                "dataType": "sc:Text",
                "source": _source(f"{name}.jsonl", path),
            }
            for field, path in _FIELDS[name].items()
        ],
    }


def _source(file: str, path: str) -> dict[str, Any]:
    """Return where a field stands: readers take the columns of JSON Lines, and what is inside one by a transform."""
    column, _, inside = path.partition(".")
    found: dict[str, Any] = {"fileObject": {"@id": file}, "extract": {"column": column}}
    return found | {"transform": {"jsonPath": f"$.{inside}"}} if inside else found


def _demographics(sheet: Datasheet) -> list[str]:
    lines: list[str] = []
    for release in sheet.demographics:
        table = release.table
        told = [f"{count.value} {count.percent}%" for count in table.counts]
        if table.withheld:
            told.append(
                f"withheld (fewer than {table.k} people, or needed to protect those): {len(table.withheld)} groups"
            )
        lines.append(f"{table.attribute}: {', '.join(told)}")
        if release.agreement is not None and release.agreement.within is not None:
            lines.append(
                f"{table.attribute}: agreement within groups {release.agreement.within}%, "
                f"between groups {release.agreement.between}%, p = {release.agreement.p} (permutation test)"
            )
    return lines


def _agreement(one: Any) -> str:
    if one.value is None:
        return f"Krippendorff's alpha, {one.of}: {one.note}"
    return f"Krippendorff's alpha, {one.of}: {one.value:.3f} [{one.low:.3f}, {one.high:.3f}] over {one.num_items} items"


def _biases(sheet: Datasheet) -> list[str]:
    lines: list[str] = []
    for what, share in (("completion shown first", sheet.shown_first_wins), ("longer completion", sheet.longer_wins)):
        if share.num_decided:
            lines.append(
                f"The {what} won {share.num_yes} of {share.num_decided} decided comparisons (p = {share.p_value:.2g})"
            )
    return lines
