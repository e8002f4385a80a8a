//! The program `postroad`: everything it does is in the library.

/// Gives memory back and is fast across threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    // A huge page for each of the allocator's small arenas would make an idle agent weigh twice as
    // much. Without the call, or where it is refused, nothing but that is lost.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    postroad::cli::main()
}
