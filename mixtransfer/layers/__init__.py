"""The ground floor: pieces that every family shares."""
