//! The endpoint picker: policies for Envoy, by its external processing.
