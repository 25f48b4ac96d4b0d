//! What hosts tell each other of their lanes: the events of `GET /fleet`.
