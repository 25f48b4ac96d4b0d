//! The version of the format, and limits of what a reader accepts. A host that exceeds one is not
//! trusted any further: the connection ends.

/// The version of the format. Readers refuse other versions.
pub const VERSION: u32 = 1;

/// Maximum size of the data of an event in bytes, and of a line.
pub const MAX_EVENT_BYTES: usize = 1 << 20;

/// Maximum number of lanes of a host.
pub const MAX_LANES: usize = 1024;

/// Maximum number of names of each kind, and of labels, that a lane has.
pub const MAX_NAMES: usize = 512;

/// Maximum size of a name, a label and any other text in bytes.
pub const MAX_TEXT: usize = 512;
