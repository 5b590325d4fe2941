// The one error type of Tidemark.
//
// An Error says what went wrong, with which object, and what to do about it; its code is what a caller can
// react to. A function that can fail returns Status or Result<T>, both [[nodiscard]]. Nothing throws across a
// public interface. Errors are values: they cross threads by move. An error is logged where it is handled, once.
#pragma once

#include <cstdint>
#include <expected>
#include <string>
#include <string_view>
#include <utility>

namespace tidemark {

// Stable numbers: they travel in the protocol's Error message and in the admin API.
enum class Code : std::uint16_t {
  ok = 0,
  invalid_argument = 1,   // the caller asked for something that cannot be
  not_found = 2,          // no such machine, point, disk, file
  already_exists = 3,     // the name or the object is taken
  permission_denied = 4,  // known, but not allowed to do this
  unauthenticated = 5,    // not known: certificate, token
  protocol = 6,           // the peer broke the protocol
  unsupported = 7,        // version or feature of the future, or one not built in
  corrupt = 8,            // stored bytes are not what was stored
  io = 9,                 // the operating system failed an operation
  no_space = 10,          // the disk or a quota is full
  busy = 11,              // a limit is reached or the object is in use: try later
  unavailable = 12,       // the peer or the partition cannot be reached now
  timed_out = 13,         // a deadline passed
  cancelled = 14,         // asked to stop
  quarantined = 15,       // a machine's fingerprint changed: an admin decides
  history_diverged = 16,  // peer and store disagree on what is durable
  internal = 17,          // our own logic failed
};

std::string_view to_string(Code code);

struct [[nodiscard]] Error {
  Code code = Code::internal;
  std::string object;  // which: a path, a machine, a peer, an option. May be empty
  std::string what;    // what is wrong with it, one sentence without a full stop
  std::string remedy;  // what to do, one sentence; empty when nothing sensible can be said

  // "object: what (remedy)", the form in which every tool prints it.
  std::string message() const;
  bool operator==(const Error&) const = default;
};

template <typename T>
using Result = std::expected<T, Error>;
using Status = std::expected<void, Error>;

inline std::unexpected<Error> fail(Code code, std::string object, std::string what, std::string remedy = {}) {
  return std::unexpected<Error>(Error{code, std::move(object), std::move(what), std::move(remedy)});
}
// From errno: ENOSPC and EDQUOT become no_space, ENOENT not_found, EACCES and EPERM permission_denied,
// EEXIST already_exists, everything else io. `doing` is what was tried: "open", "write 4096 bytes at 8192".
std::unexpected<Error> fail_errno(int error_number, std::string object, std::string_view doing);

}  // namespace tidemark

// Evaluates an expression of type Status or Result<T>: returns its error from the enclosing function, or is the value.
#define TIDEMARK_TRY(...)                                                                         \
  __extension__({                                                                                 \
    auto&& tidemark_try_result = (__VA_ARGS__);                                                   \
    if (!tidemark_try_result) [[unlikely]]                                                        \
      return std::unexpected(std::move(tidemark_try_result).error());                             \
    ::tidemark::internal::take(std::forward<decltype(tidemark_try_result)>(tidemark_try_result)); \
  })

namespace tidemark::internal {
template <typename T>
T take(std::expected<T, Error>&& result) {
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}
template <typename T>
T take(std::expected<T, Error>& result) {
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}
}  // namespace tidemark::internal
