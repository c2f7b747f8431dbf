//! How much of a GPU an engine may take. Pure.
