package toolkit.bundle

import android.util.Log
import androidx.test.ext.junit.runners.AndroidJUnit4
import androidx.test.platform.app.InstrumentationRegistry
import org.junit.Assert.assertTrue
import org.junit.Test
import org.junit.runner.RunWith

/** `gradle :bundle:connectedAndroidTest`: every bundle's self-test on the device that is plugged in. */
@RunWith(AndroidJUnit4::class)
class SelfTestOnDevice {
    @Test
    fun everyBundlePasses() {
        val instrumentation = InstrumentationRegistry.getInstrumentation()
        val assets = instrumentation.context.assets
        val names = assets.list("bundles").orEmpty()
        assertTrue("there are no bundles among the test's assets", names.isNotEmpty())
        for (name in names) {
            val folder = Bundle.unpack("bundles/$name", instrumentation.targetContext.cacheDir) { assets.open(it) }
            val lines = ArrayList<String>()
            val passed = SelfTest(folder, OrtEngine.OPENER) { lines.add(it) }.run()
            lines.forEach { Log.i("selftest", it) }
            assertTrue(lines.joinToString("\n"), passed)
        }
    }
}
