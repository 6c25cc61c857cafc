"""From bytes to images: decoding, the one fetcher, work done ahead."""
