// What comes from a deblurd daemon: frames, and the messages and the shared memory that they come in.
//
// Knows the wire format (docs/2-wire-format.md) and decodes no JPEG; opens no socket.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>
#include <zmq.hpp>

namespace deblurd {

using Clock = std::chrono::steady_clock;
using json = nlohmann::json;

constexpr int wire_version = 1;

/// A message is not of the wire format. The next `receive` goes on after it.
struct WireError : std::runtime_error { using runtime_error::runtime_error; };
/// A message is of a newer version of it: update this client.
struct VersionError : WireError { using WireError::WireError; };

/// One frame. Rows from top to bottom, without padding.
struct Frame {
    std::string stream, pixel_format;  ///< rgb24, bgr24 or gray8
    std::string encoding;              ///< raw or shared: width * height pixels; jpeg: a JPEG file
    std::int64_t width, height, seq, epoch;
    std::chrono::nanoseconds captured, arrived, published, published_unix;  ///< by the clocks of the wire format
    std::string boot_id, run_id;
    const std::uint8_t* pixels;         ///< `size` bytes, to be read only
    std::size_t size;
    std::shared_ptr<const void> owner;  ///< keeps the pixels
    json header;                        ///< all that is known of the frame, by the names of the wire format

    /// Since the frame arrived at the daemon; from another host, as good as the two wall clocks agree.
    std::chrono::nanoseconds age() const {
        static const auto our_boot_id = [] {
            std::string id;
            std::ifstream("/proc/sys/kernel/random/boot_id") >> id;
            return id;
        }();
        if (boot_id == our_boot_id) return Clock::now().time_since_epoch() - arrived;
        return published - arrived + (std::chrono::system_clock::now().time_since_epoch() - published_unix);
    }
};

namespace detail {

/// A message taken apart; `payload` lies in what `owner` keeps.
struct Message {
    json header;
    const std::uint8_t* payload;
    std::size_t size;
    std::shared_ptr<const void> owner;
};

inline Message unpack(zmq::message_t&& received) {
    const auto message = std::make_shared<zmq::message_t>(std::move(received));
    const auto* begin = message->data<std::uint8_t>();
    const std::size_t size = message->size();
    const auto* nul = static_cast<const std::uint8_t*>(std::memchr(begin, 0, std::min<std::size_t>(size, 256)));
    if (nul == nullptr || nul == begin || begin + size < nul + 5)
        throw WireError("a message must begin with a topic, a NUL and the length of its header");
    const std::uint32_t length = nul[1] | nul[2] << 8 | nul[3] << 16 | std::uint32_t{nul[4]} << 24;
    const std::size_t at = nul + 5 - begin;
    if (length > 65536 || length > size - at)
        throw WireError("a header must be at most 65536 bytes and within its message, got " + std::to_string(length));
    auto header = json::parse(begin + at, begin + at + length, nullptr, false);
    if (!header.is_object() || !header.contains("version") || !header["version"].is_number_integer())
        throw WireError("a header must be a JSON object in UTF-8 with a version");
    if (header["version"] > wire_version)
        throw VersionError("the daemon speaks wire format " + header["version"].dump() + ", this client " +
                           std::to_string(wire_version) + ": update the client");
    const std::size_t payload = std::min(size, (at + length + 63) / 64 * 64);
    return {std::move(header), begin + payload, size - payload, message};
}

/// A field that must hold a whole number.
inline std::int64_t whole(const json& header, const char* name) {
    const auto& value = header.at(name);
    if (!value.is_number_integer()) throw WireError(std::string(name) + " must be a whole number, got " + value.dump());
    return value;
}

/// A file of the daemon in shared memory, if it is one of this user: the name came over a socket.
struct Mapping {
    const std::uint8_t* data = nullptr;
    std::size_t size = 0;

    explicit Mapping(const std::string& path) {
        const int file = ::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        struct stat found {};
        if (file >= 0 && ::fstat(file, &found) == 0 && S_ISREG(found.st_mode) && found.st_uid == ::geteuid()) {
            void* at = ::mmap(nullptr, found.st_size, PROT_READ, MAP_SHARED, file, 0);
            if (at != MAP_FAILED) data = static_cast<std::uint8_t*>(at), size = found.st_size;
        }
        if (file >= 0) ::close(file);
    }
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;
    ~Mapping() { if (data != nullptr) ::munmap(const_cast<std::uint8_t*>(data), size); }
};

/// Frames in shared memory that one run of the daemon lends, until they are given back.
class Loans : public std::enable_shared_from_this<Loans> {
  public:
    /// Take what a welcome offers; `readable` is false where that is nothing, or where this process cannot read it.
    void offer(const json& shared) {
        readable = false;
        if (shared.is_null()) return;
        folder_ = shared.at("folder");
        const auto value = shared.at("probe_value").get<std::string>();
        const Mapping probe(path(shared.at("probe")));
        readable = probe.data != nullptr && std::string(probe.data, probe.data + probe.size) == value;
    }

    /// Let `message` hold the pixels that it names; false if they are not there.
    bool borrow(Message& message) {
        const json& place = message.header.at("shared");
        const std::string name = path(place.at("file"));
        const std::size_t offset = whole(place, "offset"), size = whole(place, "size");
        const std::int64_t token = whole(place, "token");
        auto& mapping = mappings_[name];
        if (!mapping) {
            mapping = std::make_shared<Mapping>(name);
            // The daemon has a new file: the time to let go of those that it has removed.
            for (auto at = mappings_.begin(); at != mappings_.end();)
                at = ::access(at->first.c_str(), F_OK) == 0 || at->first == name ? std::next(at) : mappings_.erase(at);
        }
        const auto kept = mapping;
        const bool there = kept->data != nullptr && size <= kept->size && offset <= kept->size - size;
        message.payload = there ? kept->data + offset : nullptr;
        message.size = size;
        message.owner = {message.payload, [kept, loans = shared_from_this(), token](const void*) {
                             const std::lock_guard lock(loans->mutex_);
                             loans->given_back_.push_back(token);
                         }};
        return there;
    }

    /// The tokens of frames that nobody holds any more.
    json given_back() {
        const std::lock_guard lock(mutex_);
        return std::exchange(given_back_, json::array());
    }

    bool readable = false;

  private:
    std::string path(const std::string& name) const {
        if (name.rfind("deblurd-", 0) != 0 || name.find('/') != name.npos)
            throw WireError("a file in shared memory must be named deblurd-..., got " + name);
        return folder_ + "/" + name;
    }

    std::string folder_;
    std::map<std::string, std::shared_ptr<Mapping>> mappings_;
    std::mutex mutex_;  // frames end in any thread
    json given_back_ = json::array();
};

/// Nothing for what this client does not know: the format may grow.
inline std::optional<Frame> to_frame(Message&& message) {
    auto& header = message.header;
    const auto ns = [&](const char* name) { return std::chrono::nanoseconds(whole(header, name)); };
    Frame frame{
        header.at("stream"), header.at("pixel_format"), header.at("encoding"),
        whole(header, "width"), whole(header, "height"), whole(header, "seq"), whole(header, "epoch"),
        ns("captured_ns"), ns("arrived_ns"), ns("published_ns"), ns("published_unix_ns"),
        header.at("boot_id"), header.at("run_id"),
        message.payload, message.size, message.owner, {},
    };
    const bool gray = frame.pixel_format == "gray8", jpeg = frame.encoding == "jpeg";
    if (!gray && frame.pixel_format != "rgb24" && frame.pixel_format != "bgr24") return {};
    if (!jpeg && frame.encoding != "raw" && frame.encoding != "shared") return {};
    if (std::min(frame.width, frame.height) < 1 || std::max(frame.width, frame.height) > 65536)
        throw WireError("width and height must be 1 to 65536");
    const std::size_t size = frame.width * frame.height * (gray ? 1 : 3);
    if (!jpeg && frame.size != size)
        throw WireError("pixels must be " + std::to_string(size) + " bytes, got " + std::to_string(frame.size));
    frame.header = std::move(header);
    return frame;
}

}  // namespace detail

}  // namespace deblurd
