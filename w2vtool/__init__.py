"""w2vtool: wav2vec 2.0 from audio to transcripts, on the command line."""

__version__ = "0.1.0"
