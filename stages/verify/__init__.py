"""Is a cache true? A sample rescored by other means: sample -> rescore -> compare -> verdict."""
