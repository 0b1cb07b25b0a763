//! Counts jobs.

fn main() {
    println!("{} jobs", itoa::Buffer::new().format(42u32));
}
