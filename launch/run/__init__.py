"""The stages of a run: their order, their loops, their files on disk, and the teacher's responses of `seqkd`."""
