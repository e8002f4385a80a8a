//! The program `postroad`: everything it does is in the library.

/// Gives memory back and is fast across threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    postroad::cli::main()
}
