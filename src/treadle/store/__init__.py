"""The only SQL of the project: a store is lane + dialect + bell, operations are plain functions over a session."""
