"""Azure's traces of LLM inference, 2023 and 2024: one table, timestamps with or without a zone."""

from simbatch.sim.workload.formats import Columns, Format

FORMATS = [
    Format(
        "azure",
        Columns("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
        unit="iso",
        source="github.com/Azure/AzurePublicDataset",
    )
]
