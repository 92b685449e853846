"""The fields of the OpenDP registry of deployments, as it publishes them, and what is wrong with a record.

Source: schemas/deployments-schema.yaml of opendp/deployments-registry-data, commit 057e5d8 (2026). The
registry changes its fields from time to time; then these must follow. A field may be absent unless it is
required; none may be null, and there are no others.
"""

import datetime
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # that of `typing` lacks what pydantic reads, before Python 3.12

from jaxcxr.errors import faults_in

_closed = with_config(ConfigDict(extra="forbid", strict=True))


def _a_day(text: str) -> str:
    datetime.date.fromisoformat(text)
    return text


Day = Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$"), AfterValidator(_a_day)]


@_closed
class Curator(TypedDict):
    """Who publishes."""

    data_curator_name: str
    data_curator_type: Literal["Government", "Industry", "Nonprofit"]


@_closed
class Basic(TypedDict):
    """What is published."""

    name: str
    data_curators: Annotated[list[Curator], Field(min_length=1)]
    description: str
    intended_use: str
    data_product_type: Literal[
        "Summary statistics", "Machine learning model", "Dataset", "Synthetic data", "Interactive API",
        "SQL queries",
    ]  # fmt: skip
    data_product_region: str
    data_product_sector: NotRequired[
        Literal["Technology", "Healthcare", "Education", "Government", "Energy", "Finance"]
    ]
    publication_date: Day


@_closed
class Variant(TypedDict, total=False):
    """Which differential privacy, of what data."""

    variant_name: Literal["Pure DP", "Approximate DP", "Zero-concentrated DP", "Renyi DP", "Custom"]
    data_domain: str
    unprotected_quantities: str


@_closed
class Parameters(TypedDict, total=False):
    """How strong."""

    epsilon: float
    delta: float | str
    rho: float


@_closed
class Loss(TypedDict, total=False):
    """Whom it protects, and how strongly."""

    privacy_unit: str
    privacy_unit_details: str
    number_of_privacy_units: int
    privacy_parameters: Parameters
    privacy_parameters_details: Any


@_closed
class DeploymentModel(TypedDict, total=False):
    """Who must be trusted, and what may be asked."""

    model_name: Literal["Local", "Central", "Shuffle", "Federated", "Varies"]
    model_name_details: str
    trust_assumptions: str
    actors: Any
    release_type: Literal["One release", "Many releases"]
    release_type_details: str
    data_source_type: Literal["Static", "Dynamic"]
    data_source_type_details: str
    access_type: Literal["Interactive", "Non-interactive"]
    access_type_details: str


@_closed
class Implementation(TypedDict, total=False):
    """How it was done, and why so."""

    preprocessing_and_hyperparameter_tuning: str
    mechanisms: str
    composition: str
    post_processing: str
    justification: str
    utility: Any
    additional_information: Any


_Number = str | int | float


@_closed
class Citation(TypedDict, total=False):
    """A source, in BibTeX's fields."""

    address: str
    annote: str
    author: str
    booktitle: str
    chapter: _Number
    doi: str
    edition: _Number
    editor: str
    email: str
    howpublished: str
    institution: str
    issn: _Number
    isbn: _Number
    journal: str
    month: _Number
    note: str
    number: _Number
    organization: str
    pages: _Number
    publisher: str
    school: str
    type: str
    series: str
    title: str
    url: str
    volume: _Number
    year: _Number


@_closed
class Evidence(TypedDict, total=False):
    """A source of the record: its kind, and one citation under the name of its BibTeX type."""

    evidence_source_type: Literal[
        "Peer-reviewed publication", "Formal publication by the deploying organization",
        "Authorized organizational attestation", "Other public source",
    ]  # fmt: skip
    article: Citation
    book: Citation
    booklet: Citation
    conference: Citation
    inbook: Citation
    incollection: Citation
    inproceedings: Citation
    manual: Citation
    mastersthesis: Citation
    misc: Citation
    phdthesis: Citation
    proceedings: Citation
    techreport: Citation
    unpublished: Citation


def _cited_once(evidence: Evidence) -> Evidence:
    if len(evidence.keys() - {"evidence_source_type"}) != 1:
        raise ValueError("expected exactly one citation")
    return evidence


@_closed
class Administrative(TypedDict):
    """About the record."""

    evidence_sources: NotRequired[dict[str, Annotated[Evidence, AfterValidator(_cited_once)]]]
    status: Literal[
        "Converted", "Draft", "Pending", "Changes Required", "Approved", "Approved (Update Requested)",
        "Approved (Pending)",
    ]  # fmt: skip
    registry_authors: Annotated[list[str], Field(min_length=1)]
    tier: Literal[1, 2, 3]


@_closed
class Deployment(TypedDict):
    """The parts of a record."""

    basic: Basic
    dp_variant: NotRequired[Variant]
    privacy_loss: NotRequired[Loss]
    deployment_model: NotRequired[DeploymentModel]
    implementation: NotRequired[Implementation]
    administrative: Administrative


@_closed
class Record(TypedDict):
    """A record of the registry."""

    url_slug: str
    deployment: Deployment


def faults(record: object) -> list[str]:
    """What is wrong with a record by the published fields, one sentence per fault; none if it is valid."""
    try:
        TypeAdapter(Record).validate_python(record)
    except ValidationError as error:
        return faults_in(error)
    return []
