//! Files that other processes read, or that were written by others: durable and atomic writes,
//! bounded reads that never block, and checks of folders that only the host may write to.

mod folder;
mod place;
mod read;
mod write;

pub use self::folder::{FolderError, check_private, check_writable, create_private};
pub use self::place::place_folder;
pub use self::read::{
    ReadError, open_private, open_private_with, open_regular, read_private, read_regular,
    read_regular_text, read_trusted,
};
pub use self::write::{WriteError, WriteStep, is_temporary, sync_folder, write_atomic};
