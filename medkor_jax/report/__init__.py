"""The report of a run: what its files say, as a page, as Markdown and as JSON. Reads run directories; no device, no weights."""
