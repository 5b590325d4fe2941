#include "cli/copy_journal.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <sstream>

namespace tidemark::cli {
namespace {

Result<std::string> content_of(int fd, const std::string& shown) {
  std::string text;
  char buffer[65536];
  for (;;) {
    const ssize_t n = ::pread(fd, buffer, sizeof buffer, static_cast<off_t>(text.size()));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno(errno, shown, "read");
    if (n == 0) return text;
    text.append(buffer, static_cast<std::size_t>(n));
  }
}

}  // namespace

CopyJournal::CopyJournal(std::string path, std::string shown, int fd)
    : path_(std::move(path)), shown_(std::move(shown)), fd_(fd) {}
CopyJournal::CopyJournal(CopyJournal&& other) noexcept
    : path_(std::move(other.path_)),
      shown_(std::move(other.shown_)),
      head_(std::move(other.head_)),
      fd_(std::exchange(other.fd_, -1)),
      resumed_(other.resumed_),
      pieces_(std::move(other.pieces_)) {}
CopyJournal::~CopyJournal() {
  if (fd_ >= 0) ::close(fd_);
}

Result<CopyJournal> CopyJournal::open(const std::string& path, const nlohmann::json& about, std::string shown) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) return fail_errno(errno, path, "open");
  CopyJournal journal(path, std::move(shown), fd);
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0)
    return fail(Code::busy, journal.shown_, "another export is writing it", "wait for it to end, or end it");
  journal.head_ = about.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  const std::string text = TIDEMARK_TRY(content_of(fd, path));
  if (!text.starts_with(journal.head_)) {
    TIDEMARK_TRY(journal.restart());
    return journal;
  }
  journal.resumed_ = true;
  std::size_t at = journal.head_.size();
  for (std::size_t end; (end = text.find('\n', at)) != std::string::npos; at = end + 1) {
    unsigned long long piece, high, low;
    if (std::sscanf(text.substr(at, end - at).c_str(), "%llu %16llx%16llx", &piece, &high, &low) != 3) break;
    journal.pieces_[piece] = {.low = low, .high = high};
  }
  // A line that was cut off must not run into the next one.
  if (::ftruncate(fd, static_cast<off_t>(at)) != 0) return fail_errno(errno, path, "write");
  return journal;
}

Status CopyJournal::restart() {
  pieces_.clear();
  resumed_ = false;
  if (::ftruncate(fd_, 0) != 0) return fail_errno(errno, path_, "write");
  return append(head_);
}

Status CopyJournal::append(const std::string& text) {
  const ssize_t written = ::write(fd_, text.data(), text.size());
  if (written < 0) return fail_errno(errno, path_, "write");
  if (static_cast<std::size_t>(written) != text.size()) return fail_errno(ENOSPC, path_, "write");
  return {};
}

std::optional<Hash128> CopyJournal::digest(std::uint64_t piece) const {
  const std::lock_guard lock(mutex_);
  const auto found = pieces_.find(piece);
  return found == pieces_.end() ? std::nullopt : std::optional(found->second);
}

Status CopyJournal::note(std::uint64_t piece, const Hash128& digest) {
  const std::lock_guard lock(mutex_);
  pieces_[piece] = digest;
  return append(fmt::format("{} {:016x}{:016x}\n", piece, digest.high, digest.low));
}

Status CopyJournal::remove() {
  if (::unlink(path_.c_str()) != 0 && errno != ENOENT) return fail_errno(errno, path_, "remove");
  return {};
}

}  // namespace tidemark::cli
