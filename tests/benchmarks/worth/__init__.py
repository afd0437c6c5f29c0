"""What a soup is worth beside its generic twin, on 200 MB of real text from packages (issue 17)."""
