"""`scenes`: a procedural world whose truth is known exactly: pictures, captions, questions, videos, documents, edits."""
